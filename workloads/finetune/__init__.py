"""Fine-tuning of Hugging Face models on any number of workers. Start reading at `loop.run`."""
