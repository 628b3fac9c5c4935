SELECT channel, countIf(event = 'SENT') AS sent, countIf(event = 'DELIVERED') AS delivered,
 countIf(event = 'FAILED') AS failed, round(delivered / sent * 100, 2) AS delivery_rate_pct
FROM notification_events WHERE created_at > now() - INTERVAL 24 HOUR GROUP BY channel
