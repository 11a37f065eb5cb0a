#!lua flags=allow-oom
-- Keep the state at a stream id, while the writer leads.
-- KEYS  scheduler snapshot      ARGV  epoch, id, core, digest, state
local epoch = redis.call('HGET', KEYS[1], 'epoch')
if epoch ~= ARGV[1] then return {'FENCED', epoch or ''} end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'id', ARGV[2], 'core', ARGV[3], 'digest', ARGV[4], 'state', ARGV[5])
return {'OK'}
