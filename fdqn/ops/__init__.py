"""Functions of tensors, one equation each: targets, losses, masks, exploration, schedules."""
