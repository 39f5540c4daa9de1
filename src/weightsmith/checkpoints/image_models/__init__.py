"""Image models: what their blocks and parts are called, in single files and in folders of diffusers."""
