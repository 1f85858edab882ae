"""The commands of ``ofmu``, one module each, loaded when they are called."""
