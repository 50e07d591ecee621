"""Fine-tuning: recipes, optimisers, the Accelerate loop."""
