#!lua flags=allow-oom
-- Keep the state at a stream id, and say so in the log, while the writer leads, has written nothing that it does not
-- know of, and the log holds that entry: a snapshot of what is gone would stand for more than is there.
-- KEYS  scheduler events snapshot
-- ARGV  token, last seq, new seq, data of SnapshotTaken, id, core, digest, state
-- Returns OK; or FENCED; or LOST.
local reign = redis.call('HMGET', KEYS[1], 'epoch', 'leader', 'seq')
local token = (reign[1] or '') .. ' ' .. (reign[2] or '')
if token ~= ARGV[1] or reign[3] ~= ARGV[2] then return {'FENCED', token} end
if #redis.call('XRANGE', KEYS[2], ARGV[5], ARGV[5]) == 0 then return {'LOST', ARGV[5]} end
redis.call('XADD', KEYS[2], '*', 'type', 'SnapshotTaken', 'data', ARGV[4])
redis.call('DEL', KEYS[3])
redis.call('HSET', KEYS[3], 'id', ARGV[5], 'core', ARGV[6], 'digest', ARGV[7], 'state', ARGV[8])
redis.call('HSET', KEYS[1], 'seq', ARGV[3])
return {'OK'}
