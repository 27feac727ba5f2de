"""Learning from unlabelled data: loop, step, optimisers, schedule, checkpoints, parallel, health."""
