-- Which of two words on one unit is the last: by time, then stage, then epoch. Epochs may share an
-- instant, because stream time stands still while side inputs are loaded at a start; what was parked in
-- one and said lost, re-timed or ended in the next must not be decided by a row id.
CREATE OR REPLACE VIEW lifecycle_counted AS
SELECT *, (indexOf(['decide', 'critical', 'deliver'], stage), epoch) AS stage_order
FROM lifecycle FINAL
WHERE stage != 'decide' OR epoch <= (SELECT epoch FROM closed_epoch);
