"""The tour: one small model of six senses, learned in minutes from what every machine has, then used. Gather, build, learn, make, judge, report."""
