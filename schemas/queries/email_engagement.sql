SELECT notification_type, countIf(event = 'DELIVERED') AS delivered, countIf(event = 'OPENED') AS opened,
 countIf(event = 'CLICKED') AS clicked, round(opened / delivered * 100, 2) AS open_rate,
 round(clicked / opened * 100, 2) AS click_rate
FROM notification_events WHERE channel = 'email' AND created_at > now() - INTERVAL 7 DAY
GROUP BY notification_type ORDER BY open_rate DESC
