"""What comes before a run: training the bundled model."""
