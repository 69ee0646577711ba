"""edge-forge: train, evaluate, export, quantise, sign and package models for edge-agent."""
