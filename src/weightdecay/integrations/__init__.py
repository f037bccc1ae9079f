"""A meter in other people's training loops: Hugging Face's Trainer, Lightning, TensorBoard."""
