"""What a run says about itself while it goes on: console, W&B, environment."""
