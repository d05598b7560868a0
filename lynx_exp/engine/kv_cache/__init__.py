"""Keys and values of the rows of a physical batch: padded batches, slots that rows enter and leave, masks, states."""
