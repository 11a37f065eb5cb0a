#!lua flags=allow-oom
-- Append what the scheduler saw to the log, while it leads and has written nothing that it does not know of.
-- KEYS  scheduler events      ARGV  epoch, last seq, new seq, then type and data of each fact
-- Returns OK and the id of the last fact; or FENCED.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'seq')
if reign[1] ~= ARGV[1] or reign[2] ~= ARGV[2] then return {'FENCED', reign[1] or ''} end
local id
for i = 4, #ARGV, 2 do id = redis.call('XADD', KEYS[2], '*', 'type', ARGV[i], 'data', ARGV[i + 1]) end
redis.call('HSET', KEYS[1], 'seq', ARGV[3])
return {'OK', id}
