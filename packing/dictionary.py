"""What headers have in common: the preset dictionary of their DEFLATE stream. Part of the format, never to be edited.

What is most frequent stands last, where it costs least.
"""

DICTIONARY = (
    b'"class_names":["conv_transpose","upsample","permute","prelu",{"slope":"gelu","silu","hardswish","hardsigmoid",'
    b'"sigmoid","mul","mul_scalar","add_scalar",{"value":"features.classifier.block."stride":[2,2],"padding":[3,3]'
    b'{"kernel":[3,3],"dilation":[1,1],"ceil_mode":true,"count_include_pad":false,"globalavgpool","avgpool"'
    b'"pad_shortcut",{"stride":2,"before":8,"after":16}"width":16"layout":"irregular""layout":"groups"'
    b'"layout":"gathered""values":["row_group_scale","values":["table","values":["sign_pair",["fp32"],["fp32"]]}'
    b'"sign","hardtanh","relu6","cat","select",{"index":[[512,[256,[128,[64,[32,[16,{"index0":{"index1":'
    b'[10,9],{},{[1,2],{[2,1],{[1,7],{,"maxpool","pool1"]["flatten","flatten"],["globalavgpool","avgpool"],'
    b'.downsample.0"[].downsample.1"[.conv2.bn2.shortcut.select0.select1["add","add","add_1"["relu","relu_1"],["relu",'
    b'"layer1.0.conv1","layer2.0.conv1",[],{"stride":[2,2],"padding":[1,1]},{},{"shape":["layer3.1.conv2",'
    b'"layer4.1.bn2",[],{},{"scale":["fp32",64],"shift":["fp32",64]}],["affine","layer1.0.bn1",'
    b'["linear","fc",[],{},{"bias":["fp16",10]},["linear","fc1",[],{},{"bias":["bf16",10]},{"shape":[10,512],"codes":'
    b'["conv","conv1",[],{"padding":[1,1]},{},{"shape":[64,3,3,3],"rows":[50,[]],"cols":[20,[]],"layout":"irregular",'
    b'"mask":[],"codes":"fp32"}],"codes":[],"values":["row_scale",["fp32",64]]}],"values":["scale",["fp32"]]}]'
    b'{"bias":["fp32",20]},{"shape":[20,1,5,5],"rows":[19,[]],"layout":"irregular","mask":[],"codes":"fp32"}],'
    b'["relu","relu1"],["maxpool","pool1"],["conv","conv2",[],{},{"bias":["fp32",50]},{"shape":[50,20,5,5],"cols":[19,[]],'
    b'["relu","relu2"],["maxpool","pool2"],["flatten","flatten"],["select","fc1.select0",[],{},{"index":[500,[]]}],'
    b'["linear","fc1",[],{},{"bias":["fp32",500]},{"shape":[500,800],"codes":[],"values":["scale",["fp32"]]}],'
    b'["relu","relu3"],["linear","fc2",[],{},{"bias":["fp32",10]},{"shape":[10,500],"cols":[120,[]],'
    b'],"meta":{"sparsign":"0.1.0","model":{"name":"resnet18","form":"fbin","options":{"block":"bireal"}},'
    b'"dataset":{"name":"imagenet","cifar100","cifar10","mean":[0.485,0.456,0.406],"std":[0.229,0.224,0.225]},'
    b'{"name":"resnet20","form":"wbin","options":{}},"dataset":{"name":"digits","mean":[0.172],"std":[0.32]},'
    b'{"name":"lenet5","form":"float","options":{}},"dataset":{"name":"mnist","mean":[0.1307],"std":[0.3081]},'
    b'"compressor":{"name":"stq_b","admm","ptq","ttq","wpc","stq_a","pfr":0.3,"pfr":null,"group":16,"pfr_unit":"group"'
    b'"column""weight""kernel""channel""filter"},"seed":0,'
    b'"accuracy":{"val_top1":null,"before_top1":0.99,"float_top1":0.99,"trained_top1":0.99},'
    b'"proof":{"images":10000,"epsilon":0.001,"close":[],"predictions":"","first":[7,2,1,0,4,1,4,9,5,9,0,6,9,0,1,5],"bits":"","logits":[-1.'
    b'"original":{"parameters":11173962,"dropped":[]}},"pools":[["fp32","planes","fields","raw",'
    b'"output":"streams":[["mixing",],[]]}"pack","deflate",[-1,0,1]],[-1,1]],{"input":[3,32,32],"nodes":[["input","x"],'
)
"""Bytes of typical headers, 32 kB at most."""
