"""The trainer: data, schedules, optimiser, loop, checkpoints, logs."""
