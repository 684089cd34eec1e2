"""What users write: spec and cluster files, their models, errors and schema. Start reading at `load`."""
