-- The leader says that it is alive, or (lease 0) that it leads no more.
-- KEYS  scheduler events
-- ARGV  epoch, lease of leadership in ms, the highest fence, until when (ms) nothing is granted because entries of the
--       log were lost, or '', and the ids of two entries that must be there
-- Returns OK, the server's time in ms and whether both entries are there (1 or 0); or FENCED.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then return {'FENCED', epoch or ''} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
if ARGV[2] == '0' then
  redis.call('HSET', KEYS[1], 'alive_until_ms', '0', 'leader', '')
else
  redis.call('HSET', KEYS[1], 'alive_until_ms', string.format('%d', now_ms + ARGV[2]), 'fence', ARGV[3])
end
if ARGV[4] == '' then
  redis.call('HDEL', KEYS[1], 'recovering_until_ms')
else
  redis.call('HSET', KEYS[1], 'recovering_until_ms', ARGV[4])
end
local found = #redis.call('XRANGE', KEYS[2], ARGV[5], ARGV[5]) * #redis.call('XRANGE', KEYS[2], ARGV[6], ARGV[6])
return {'OK', string.format('%d', now_ms), found}
