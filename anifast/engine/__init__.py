"""What every training run needs and no system owns: loop, checkpoints, logs, precision, pictures of a run."""
