"""An average of models, without a base, and of checkpoints of one training run; two of them also of task vectors."""
