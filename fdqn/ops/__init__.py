"""Functions of tensors, one equation each: TD errors, targets, losses, masks, exploration and schedules."""
