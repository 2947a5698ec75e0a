"""What single latents tell about Python source: labels, scores, probes, separability, absorption."""
