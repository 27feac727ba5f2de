"""One base into many workers: probes on frozen features today; LoRA, preference and distillation come with a later issue."""
