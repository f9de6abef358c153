"""Reinforcement learning: rollouts, rewards, environments, and the table of algorithms."""
