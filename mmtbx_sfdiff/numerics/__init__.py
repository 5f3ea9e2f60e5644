"""General numerical methods that follow scitbx step for step."""
