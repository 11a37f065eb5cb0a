#!lua flags=allow-oom
-- The leader says that it is alive, or (lease 0) that it leads no more.
-- KEYS  scheduler events
-- ARGV  token, lease of leadership in ms, the highest fence, until when (ms) nothing is granted because entries of the
--       log were lost, or '', the last entry that the leader knows, which must be there, what people should know is
--       wrong, or '', and through which entry the log was read when the leader found last that of what it had not read
--       nothing was deleted
-- Returns OK, the server's time in ms, whether that entry is there (1 or 0), and the highest that was ever deleted; or
-- FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] then return {'FENCED', token} end
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
if ARGV[6] == '' then
  redis.call('HDEL', KEYS[1], 'trouble')
else
  redis.call('HSET', KEYS[1], 'trouble', ARGV[6])
end
redis.call('HSET', KEYS[1], 'read_through', ARGV[7], 'last_id', ARGV[5])
local deleted, about = '0-0', redis.pcall('XINFO', 'STREAM', KEYS[2])
for i = 1, #about, 2 do
  if about[i] == 'max-deleted-entry-id' then deleted = about[i + 1] end
end
return {'OK', string.format('%d', now_ms), #redis.call('XRANGE', KEYS[2], ARGV[5], ARGV[5]), deleted}
