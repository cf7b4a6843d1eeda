"""Who and when: pure decisions about devices, releases, rollouts and executions. No IO, no clock."""
