"""What the stages that learn from their own answers share: schedule, generation, rewards, batches, samples."""
