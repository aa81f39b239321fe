"""What every room may know: settings, errors, the log's lines, time limits, and who gets in."""
