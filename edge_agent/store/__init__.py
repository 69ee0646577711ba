"""The packages on this device: stage, verify, probe, switch, roll back."""
