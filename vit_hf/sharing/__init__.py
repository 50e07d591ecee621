"""What leaves a run folder: the model card."""
