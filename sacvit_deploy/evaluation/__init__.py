"""What a bundle is worth: agreement, accuracy, cost."""
