"""What is asked of an engine and what comes back: plans of lanes, requests, sampling, stopping, results."""
