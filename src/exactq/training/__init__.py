"""Fine-tuning on the plan's grids: what training sees is what is deployed."""
