"""Commands that keep many fine-tunes of one base: task bundles and delta packages."""
