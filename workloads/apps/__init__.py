"""Ready-made applications for `serve.app`: each asks models through the endpoints that its spec names in `calls`."""
