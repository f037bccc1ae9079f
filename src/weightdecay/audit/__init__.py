"""What an optimizer really does: measured, not promised."""
