"""Every state that a power cut may leave of a folder, from the system calls of a real run."""
