-- The server's clock was put back: sessions that were timed before that are put back as well.
-- KEYS  scheduler sessions
-- ARGV  epoch, by how much (ms), and how far ahead (ms) of now only those are that beat before
-- Returns OK; or FENCED.
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then return {'FENCED', epoch or ''} end
local time = redis.call('TIME')
local now_ms = time[1] * 1000 + math.floor(time[2] / 1000)
local from = string.format('%d', now_ms + ARGV[3])
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. from, '+inf')) do
  redis.call('ZINCRBY', KEYS[2], '-' .. ARGV[2], member)
end
return {'OK'}
