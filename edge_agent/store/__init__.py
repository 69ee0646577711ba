"""The packages on this device: verify, stage, try, switch, roll back."""
