"""Parts of the trainer: steps, optimizers, masks, checkpoints, evaluation, logging, data-parallel processes."""
