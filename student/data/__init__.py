"""What a step reads: order of images, batches, pixels and targets."""
