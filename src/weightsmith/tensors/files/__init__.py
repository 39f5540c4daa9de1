"""Files of tensors: headers, indexes of shards, layouts of outputs, their writer, and strict JSON."""
