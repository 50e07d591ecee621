"""What a model is and does: summary of sizes and cost, plots."""
