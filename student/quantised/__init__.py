"""Students in int8: which tensors are quantised, ranges measured on views or learnt in a last phase of training."""
