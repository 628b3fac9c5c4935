SELECT channel, priority, quantile(0.50)(delivery_latency_ms) AS p50_ms,
 quantile(0.95)(delivery_latency_ms) AS p95_ms, quantile(0.99)(delivery_latency_ms) AS p99_ms
FROM (SELECT channel, priority, dateDiff('millisecond', created_at, delivered_at) AS delivery_latency_ms
 FROM notification_deliveries WHERE delivered_at > now() - INTERVAL 1 HOUR)
GROUP BY channel, priority
