"""What happened and why: recorded verdicts, explanations of them, metrics and logs. Asks nobody, changes nothing."""
