-- The leader says that it is alive, or (lease 0) that it leads no more.
-- KEYS  scheduler      ARGV  epoch, lease of leadership in ms
-- Returns OK and the server's time in ms; or FENCED.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then return {'FENCED', epoch or ''} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '0' then
  redis.call('HSET', KEYS[1], 'alive_until_ms', '0', 'leader', '')
else
  redis.call('HSET', KEYS[1], 'alive_until_ms', string.format('%d', now_ms + ARGV[2]))
end
return {'OK', string.format('%d', now_ms)}
