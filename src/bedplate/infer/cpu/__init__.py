"""The trunk on a processor, as one compiled call a step; torch does the same where there is no compiler."""
