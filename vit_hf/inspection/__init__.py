"""What a model is and does: sizes and cost by layer, filters, positions, attention, patches, and plots of all kinds."""
