"""From samples to numbers: times of a record, their intervals, what is beyond chance, floors."""
